"""The tiny trained model: data, tokenizer, torch model, training, export and evaluation.

Only ``tools/make_tiny.py`` drives this package. Nothing here is imported by ``mtpref`` itself: torch is
needed to make the model, never to run it.
"""
