"""The subcommands, one a module, each a function of the same name."""
