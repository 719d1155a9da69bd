"""A campaign of random instances with known answers against every engine, the checker, the store and onnxruntime.

`python -m tests.campaign --minutes M --seed S` runs it, `--plant NAME` puts an old fault back first and shows that it
is found, `python -m tests.campaign.mutants KIND` tries broken proofs, networks and properties. See tests/README.md.
"""
