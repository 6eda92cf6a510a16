package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/boughdb/bough/internal/control"
	"github.com/boughdb/bough/internal/service"
)

// errFindings ends `bough doctor` with exit code 1; what it found is printed already.
var errFindings = errors.New("there is something to look at; see above")

// doctorCommand tells a person what is wrong and what to do.
func doctorCommand() *cobra.Command {
	var dir string
	var asJSON bool
	var opts service.DoctorOptions
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Compare what should be with what is, and say what to do",
		Long: `Compare what the control database says with the processes, volumes, mounts, WAL directories, sockets and files that there
are, look at the machine, and say of each difference what it is, since when, what the server does about it or what you
should do. While the server runs it is asked, and repairs by itself what it is sure of; without it, doctor looks from
outside, says what it could not see, and changes nothing.

The exit code is 0 when all is fine, 1 when there is a finding. Run it as the user that runs the server.`,
		Example: "  bough doctor\n  bough doctor --json | jq '.findings[].problem'",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := service.Doctor(cmd.Context(), dir, opts)
			if err != nil {
				return err
			}
			if asJSON {
				enc := json.NewEncoder(os.Stdout)
				enc.SetIndent("", "  ")
				err = enc.Encode(d)
			} else {
				printDiagnosis(d)
			}
			if err == nil && len(d.Findings) > 0 {
				return errFindings
			}
			return err
		},
	}
	dataDirFlag(cmd.Flags(), &dir)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().StringVar(&opts.DatabaseURL, "database-url", "", "control database, when the server was given one; used only while none runs")
	cmd.Flags().StringSliceVar(&opts.PostgresDirs, "postgres-dir", nil, "more folders with PostgreSQL builds; used only while no server runs")
	return cmd
}

func printDiagnosis(d service.Diagnosis) {
	fmt.Printf("data directory %s\n\n", d.DataDir)
	for _, line := range d.Fine {
		fmt.Printf("  ok    %s\n", line)
	}
	for _, line := range d.Notes {
		fmt.Printf("  note  %s\n", line)
	}
	for _, line := range d.Unchecked {
		fmt.Printf("  ?     not looked at: %s\n", line)
	}
	if len(d.Repaired) > 0 {
		fmt.Printf("\nRepaired by the server since it started:\n")
		for _, f := range d.Repaired {
			at := ""
			if f.At != nil {
				at = f.At.Local().Format(time.DateTime)
			}
			fmt.Printf("  %s  %s\n                       %s (%s)\n", at, f.Problem, did(f.Will), f.Kind)
		}
	}
	if len(d.Findings) == 0 {
		fmt.Println("\nNothing to do.")
		return
	}
	fmt.Println("\nTo look at:")
	for _, f := range d.Findings {
		fmt.Printf("\n  %s: %s\n", strings.ToUpper(string(f.Severity)), f.Problem)
		fmt.Printf("    seen since  %s (%s)\n", f.Since.Local().Format(time.DateTime), f.Kind)
		switch {
		case f.Will == "":
		case f.State == control.DriftReported:
			fmt.Printf("    the server  will %s when it runs\n", f.Will)
		case f.State == control.DriftFailed:
			fmt.Printf("    the server  tried to %s: %s; it tries again\n", f.Will, f.Error)
		default:
			fmt.Printf("    the server  will %s if that lasts\n", f.Will)
		}
		if f.Advice != "" {
			fmt.Printf("    what to do  %s\n", f.Advice)
		}
	}
}

// did turns "remove it" into what is said afterwards.
func did(will string) string { return "done: " + will }
