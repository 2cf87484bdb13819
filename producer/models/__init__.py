"""Models on their way into a store and out of it: folders, single files, LoRAs in other programs' formats."""
