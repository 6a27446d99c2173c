"""What people see: the terminal, TensorBoard, figures and pages."""
