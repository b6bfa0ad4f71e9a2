"""Small faults put into the code, one at a time: which do the tests notice?"""
