"""The contract `cellexport.v1`: its `.proto` files and the stubs that `make proto` makes from them."""
