"""C++ program that runs a ``.pte`` file as on a phone, and its build."""
