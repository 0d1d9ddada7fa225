"""The subcommands of `verst`, one file per group. Each imports what it needs when it runs: `verst --help` is quick."""
