"""From a model to an ONNX file that was checked, and back to a function of tensors.

export.py is the verb and calls the others in this order: request, unwrap, prepare (merge), program (operators),
functions, model_file (names, account), verify (cases, tolerance, reference), report. aten.py goes the same way as far
as a program. session.py runs a file (open_session, runs).
"""
