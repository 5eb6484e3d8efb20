"""In place of SciPy, which MXNet imports for tests of its own where it is there, and which takes longer than MXNet."""

raise ImportError("the tests leave SciPy out in this process")
