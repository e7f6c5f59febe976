"""What processes share: a file, the seats in it, what each is about to do, and how they
wait.
"""
