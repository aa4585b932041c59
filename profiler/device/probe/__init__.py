"""The probe: loops that saturate one resource each, and what is measured with them."""
