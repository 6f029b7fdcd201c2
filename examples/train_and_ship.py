"""Train on ROOT/<domain>/<class>/<images>, export one ONNX file, classify with it.

python examples/train_and_ship.py ROOT
"""

import sys

import fedapt

root = sys.argv[1]
run = fedapt.train(root, out="run", rounds=10, lr=0.1)
print(f"accuracy {run.evaluation.mean:.1%}, zero-shot {run.evaluation.zero_shot_mean:.1%}")
delivered = run.export("model.onnx")
classifier = fedapt.Classifier.load(delivered.model)  # needs neither torch nor fedapt
for prediction in classifier.stream(run.images("test")):
    print(prediction.path, prediction.label, f"{prediction.score:.2f}", prediction.routed_to)
