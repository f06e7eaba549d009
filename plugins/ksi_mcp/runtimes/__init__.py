"""The runtimes that call tools by KSI's gate, and the proof that they do."""
