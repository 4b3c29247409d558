"""Pictures of any number of bands: reading TIFFs, what their values are like, which of them an encoder takes."""
