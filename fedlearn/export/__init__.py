"""From a run directory to what a phone needs: ONNX graphs, a plan, golden vectors, a signed bundle.

The package hands on no names: import the module that has them. It needs the extra ``export``.
"""
