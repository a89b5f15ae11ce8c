# SPDX-License-Identifier: Apache-2.0
"""`nsrun map`: pods as a transit map, on which each process is a station and each namespace a line.

gather.py asks the kernel, and the notes for names, and fills in the model (model.py); text.py, dot.py, svg.py and html.py
draw a model and ask nobody; watch.py waits for a change, and serve.py shows each new map to browsers.
"""
