"""Secure aggregation: the server learns the sum of a round's updates, and no single update.

A round has four stages. In each, the server sends every active client a message, and it replies:

    keys      two fresh public keys: one for masks, one for sealed shares
    shares    Shamir's shares of the own seed and of the mask key, sealed for each neighbour
    masked    the update in fixed point + a mask from the own seed +- one for each neighbour
    unmask    for each neighbour that sent its vector a share of its seed; for each that did not, a
              share of its mask key; never both

Masks of neighbours cancel in the sum. The server computes the masks of clients that dropped out,
and every own mask, from `threshold` shares, and subtracts them. Nodes keep their state between
stages in Flower's `Context.state`, in memory. A node that restarts has dropped out of the round.

Source: Bonawitz et al., Practical secure aggregation (CCS 2017); Bell et al., Secure single-server
aggregation with (poly)logarithmic overhead (eprint 2020/704) for the graph of neighbours.
"""

from __future__ import annotations

# the stages; Flower calls them train.keys and so on
KEYS, SHARES, MASKED, UNMASK = STAGES = ("keys", "shares", "masked", "unmask")
# the record of a message that is about the sum, and of its reply
SECURE = "secure"
