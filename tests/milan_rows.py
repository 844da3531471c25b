"""Three rows of MILAN that see the same images, of which two aim at the same teacher."""

ROWS = """
[[rows]]
method = "milan"
[[rows]]
method = "milan"
variant = "uniform"
[rows.set]
masking = { type = "Random", ratio = 0.75 }
[[rows]]
method = "milan"
variant = "pixels"
[rows.set]
"objectives.0.target" = { type = "Pixels" }
"objectives.0.loss" = { type = "L2" }
"objectives.0.where" = "hidden"
"""
