"""The encoder: backbone, head, batch norm, device, export. Nothing is imported here, so that parts stay light."""
