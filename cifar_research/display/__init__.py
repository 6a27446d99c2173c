"""Output for people: terminal, TensorBoard, tables, figures, pages."""
