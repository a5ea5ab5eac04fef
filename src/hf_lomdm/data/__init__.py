"""Data of training and evaluation: documents, tokenizers, rows, batches, draws and tasks."""
