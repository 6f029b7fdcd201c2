"""Secure aggregation: the server learns the sum of a round's updates, and no single one.

A round has four stages, each a message to every client that is still there and its reply:

    keys      two fresh public keys: one for masks, one for sealed shares
    shares    Shamir's shares of the own seed and of the mask key, sealed for each neighbour
    masked    the update in fixed point + a mask from the own seed +- one for each neighbour
    unmask    for each neighbour that sent its vector a share of its seed; for each that did not, a
              share of its mask key; never both

Masks of neighbours cancel in the sum; those of clients that dropped out, and every own mask, the
server computes from `threshold` shares and takes off. Nodes remember what they need from one stage
to the next in Flower's `Context.state`, in memory; a node that is started again has dropped out.

Source: Bonawitz et al., Practical secure aggregation (CCS 2017); Bell et al., Secure single-server
aggregation with (poly)logarithmic overhead (eprint 2020/704) for the graph of neighbours.
"""

from __future__ import annotations

# the stages; Flower calls them train.keys and so on
KEYS, SHARES, MASKED, UNMASK = STAGES = ("keys", "shares", "masked", "unmask")
# the record of a message that is about the sum, and of its reply
SECURE = "secure"
