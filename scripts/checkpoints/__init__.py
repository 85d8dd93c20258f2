"""Checkpoints of transformers: exporting them to model folders, and comparing the server's answers with theirs.

- export.py, parity.py, accuracy.py
                             the commands, behind scripts/export, scripts/parity and scripts/accuracy
- sources.py                 where a checkpoint comes from: a folder, the Hub, or random weights
- random_weights.py, clip_vocabulary.py, tokenizers_of.py
                             architectures of checkpoints.json with random weights, and the tokenizers these need
- graphs.py, folder.py       from a torch model to checked ONNX graphs, and to a folder that appears whole or not at all
- comparison.py              ONNX Runtime against PyTorch, through the folder's own files
- photos.py                  the pictures that all of them compare on
- reference.py, server.py, pixel_probe.py, measures.py, report.py
                             what transformers answers, what the server answers, and how far apart they are
- published.py, agreement.py, accuracy_report.py
                             the same for published weights in the code of their own package
"""
