"""The bundled demo: a trained digit classifier, real images to send it, and the script that trained it."""
