"""What the explorer's pages are made of: the folders given, messages, figures, tables, models."""
