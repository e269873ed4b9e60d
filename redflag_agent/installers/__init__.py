"""Installers: how each package manager plans a change, carries it out and is looked at afterwards."""
