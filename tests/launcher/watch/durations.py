"""Seconds and how every view tells them: the terminal's and the dashboard's."""

DURATIONS = [
    (10.4, "10 s"),
    (59.4, "59 s"),
    (59.6, "1 min 0 s"),
    (192, "3 min 12 s"),
    (239.6, "4 min 0 s"),
    (3599.7, "1 h 0 min"),
    (3700, "1 h 2 min"),
    (7199, "2 h 0 min"),
    (172_700, "47 h 58 min"),
    (172_795, "2 d 0 h"),
    (260_000, "3 d 0 h"),
]
