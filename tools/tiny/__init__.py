"""The tiny trained model: data, tokenizer, torch model, training, export and evaluation.

``tools/make_tiny.py`` and ``tools/evaluate_tiny.py`` drive this package. Nothing here is imported by ``mtpref`` itself:
torch is needed to make the model, never to run it.
"""
