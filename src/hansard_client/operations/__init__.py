"""What the library can do, written once for both kinds of callers: coroutines and asynchronous
generators, which await nothing but the link they are given.
"""
