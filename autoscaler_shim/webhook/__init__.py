"""The admission webhook of our annotations: what it answers is kserve_ext/api/admission.py's."""
