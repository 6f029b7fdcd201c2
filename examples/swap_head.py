"""Update a deployed model with a small head after more rounds. The tower stays the same.

python examples/swap_head.py ROOT
"""

import sys

import fedapt

root = sys.argv[1]
first = fedapt.train(root, out="first", rounds=2, lr=0.1)
model = first.export("model.onnx").model  # shipped once
later = fedapt.train(root, out="later", rounds=10, lr=0.1)
head = later.export("head.safetensors", head_only=True).model  # shipped again and again
print(f"the model has {model.stat().st_size:,} bytes, its head {head.stat().st_size:,}")
for name, classifier in (
    ("first", fedapt.Classifier.load(model)),
    ("later", fedapt.Classifier.load(model, head=head)),
):
    predictions = classifier(first.images("test"))
    print(f"{name}: mean score {sum(p.score for p in predictions) / len(predictions):.3f}")
