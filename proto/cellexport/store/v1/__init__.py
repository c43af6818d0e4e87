"""Records as they are kept: the `.proto` file and the stubs that `make proto` makes from it."""
