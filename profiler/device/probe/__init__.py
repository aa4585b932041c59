"""The probe: loops that saturate one resource each, and the rates and costs that are measured."""
