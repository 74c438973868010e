"""Calibration: what a model's networks see (`trajectories`, `pictures`), which samples of it cover their ranges (`observation`,
`coverage`), packed as Pulsar2 reads them (`tars`), and whether they hold for a drawing that they are not of (`held_out`).
"""
