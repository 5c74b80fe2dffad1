#!/usr/bin/env python3
"""Stands in for llama-server in the tests of llama.cpp: its flags become those of `fuserun serve`, with the demo model."""

import os
import sys

KNOWN = {"--host": "--host", "--port": "--port", "--api-key": "--api-key", "--parallel": "--slots"}
given = sys.argv[1:]
arguments = [os.environ["FUSERUN"], "serve", "--device", "cpu", "--threads", "1"]
for flag, value in zip(given, given[1:]):
    if flag in KNOWN:
        arguments += [KNOWN[flag], value]
os.execv(arguments[0], arguments)
