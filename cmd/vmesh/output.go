package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

// outputFormat is how a command prints what it has found: json, yaml, or in a way for people.
type outputFormat string

// structured says whether it is for programs.
func (f outputFormat) structured() bool { return f == "json" || f == "yaml" }

// print writes what was found in a format for programs.
func (f outputFormat) print(out io.Writer, what any) error {
	data, err := json.MarshalIndent(what, "", "    ")
	if err != nil {
		return err
	}
	data = append(data, '\n')
	if f == "yaml" {
		if data, err = yaml.JSONToYAML(data); err != nil {
			return err
		}
	}
	_, err = out.Write(data)
	return err
}

// addFlag adds --output to a command, which takes json, yaml, what stands for the default,
// and the other formats that are given.
func (f *outputFormat) addFlag(cmd *cobra.Command, usage string, others ...string) {
	flag := &outputFlag{format: f, byDefault: *f, offered: append(others, "json", "yaml")}
	cmd.Flags().VarP(flag, "output", "o", usage)
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(flag.offered, cobra.ShellCompDirectiveNoFileComp))
}

// outputFlag is the flag's value.
type outputFlag struct {
	format    *outputFormat
	byDefault outputFormat
	offered   []string
}

func (v *outputFlag) String() string { return string(*v.format) }

// Type is what the help shows as the kind of value.
func (v *outputFlag) Type() string { return "string" }

func (v *outputFlag) Set(s string) error {
	if !slices.Contains(v.offered, s) && s != string(v.byDefault) {
		last := len(v.offered) - 1
		return fmt.Errorf("it must be %s or %s", strings.Join(v.offered[:last], ", "), v.offered[last])
	}
	*v.format = outputFormat(s)
	return nil
}
