"""Plug-in specs: one small file per architecture family, each with a FAMILY (see `verst.sync.layout.mapping`)."""
