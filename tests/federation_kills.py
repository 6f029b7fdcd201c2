"""A deployment whose server and nodes are killed at random moments: the same result.

    python tests/federation_kills.py --kills 20 [--seed 0]

Real processes on loopback: a server and three nodes, a tiny CLIP, twenty rounds. Each kill is
SIGKILL to the server or to a node, at a moment drawn from the time that a training takes
undisturbed; the process is started again at once, and a training whose server was killed is asked
for again. A third of the trainings is disturbed twice. The checkpoint has to be that of the
undisturbed training to the byte, and the records but for times, except where a record names the
killed node under `refused`: that is the loss that docs/scaling.md describes. Prints a line for each
training, and exits with 1 where anything else differs.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from support.federation import deploy
from support.killing import SERVER, draw_kills, judge, train
from support.tiny import CLASSES, write_tiny_clip, write_tiny_images

NODES = ("cartoon", "photo", "sketch")
SETTINGS = (
    "train.rounds=20",
    "train.lr=0.1",
    "train.batch_size=8",
    "train.evaluate_every=2",
    "prompt.context_length=4",
    "federation.round_seconds=600.0",
)


def main() -> int:
    """Kill one process after another; 0 where all is well."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, done, verdicts = random.Random(options.seed), 0, list[str]()
    with tempfile.TemporaryDirectory(prefix="kills") as name:
        work = Path(name)
        images, clip = write_tiny_images(work / "images", 6, NODES), work / "clip"
        write_tiny_clip(clip)
        classes = [text.replace("_", " ") for text in CLASSES]
        with deploy(work / "d", NODES, classes, images, clip, *SETTINGS) as deployment:
            deployment.start_server()
            for node in NODES:
                deployment.start_node(node)
            train(deployment, "first", [], 0.0)  # has what each process does once
            seconds = train(deployment, "whole", [], 0.0)
            print(f"undisturbed: {seconds:.1f} s", flush=True)
            runs = deployment.folder / "server"
            while done < options.kills:
                kills, out = draw_kills(rng, (SERVER, *NODES)), f"trial{len(verdicts)}"
                took = train(deployment, out, kills, seconds)
                verdicts.append(judge(runs / "whole", runs / out, kills))
                done += len(kills)
                told = ", ".join(f"{kill.victim} at {kill.share:.0%}" for kill in kills)
                print(f"{done:3} kills: {told}: {verdicts[-1]} ({took:.1f} s)", flush=True)
            for process in (SERVER, *NODES):
                if "Traceback" in (said := deployment.say(process)):
                    verdicts.append(f"WRONG: {process}: {said[-3000:]}")
                    print(verdicts[-1])
    same = sum(verdict == "same" for verdict in verdicts)
    wrong = sum(verdict.startswith("WRONG") for verdict in verdicts)
    lost = len(verdicts) - same - wrong
    print(f"{done} kills: {same} the same, {lost} with a loss that is recorded, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
