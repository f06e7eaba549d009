"""Routes of a shape that is expected elsewhere: questions, content, and lists to be read."""
