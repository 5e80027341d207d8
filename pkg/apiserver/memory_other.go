//go:build !linux

package apiserver

func returnProgramPages() {}
