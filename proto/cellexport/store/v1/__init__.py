"""The records in the Redis store, version 1: the `.proto` file, and the stubs that `make proto` makes from it."""
