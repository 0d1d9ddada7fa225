"""Replays choices in the trainer's model: the experts and attended tokens that the engine or an earlier pass
chose.

Open `routing.py` first: `RoutingReplay` makes the model's routers use the experts that the engine chose.
`selection.py` does the same for the tokens that sparse attention chose. `entries.py` copies routing entries
to the device and unpacks them there. `probe.py` measures what replay changes. One router's and one layer's
part is in `model/`: `replayed_routing.py` and `replayed_selection.py`.
"""
