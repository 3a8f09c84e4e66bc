"""What a pair of programs is worth: its bound, its likelihood, its gradients, and its hand-coded twin."""
