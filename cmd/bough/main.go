// Command bough is all of Bough: the server and its command line.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/boughdb/bough/internal/cli"
	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/service"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string) int {
	root := &cobra.Command{
		Use:   "bough",
		Short: "Postgres that branches, sleeps and wakes, on your own machine",
		Long: `Bough is a self-hosted Postgres platform that speaks the Neon API: projects, copy-on-write branches,
computes that sleep when unused and wake on the first connection.

Start a server with 'bough serve' (or 'bough up' in the background); the other verbs talk to it.`,
		Version: service.Version,
	}
	root.SetArgs(args)
	root.AddGroup(&cobra.Group{ID: "server", Title: "The server:"}, &cobra.Group{ID: "client", Title: "What is in it:"})
	for _, cmd := range []*cobra.Command{serveCommand(), upCommand(), downCommand(), statusCommand(), doctorCommand(), poolCommand(), historyCommand(), postgresCommand(), adminCommand()} {
		cmd.GroupID = "server"
		if err := fromEnvironment(cmd); err != nil {
			return report(err)
		}
		root.AddCommand(cmd)
	}
	for _, cmd := range cli.Commands(cli.Options{}) {
		cmd.GroupID = "client"
		root.AddCommand(cmd)
	}
	cli.Prepare(root)
	return report(root.ExecuteContext(ctx))
}

// report prints an error, with what an operator can do about it, and returns the exit code.
func report(err error) int {
	if err == nil {
		return cli.ExitOK
	}
	if errors.Is(err, errFindings) {
		return cli.ExitError
	}
	text, hint := err.Error(), ""
	if e, ok := errors.AsType[*core.Error](err); ok && e.Kind != core.KindInternal {
		text = e.Message
		for {
			hint = cmp.Or(hint, e.Hint)
			inner, ok := errors.AsType[*core.Error](e.Err)
			if !ok {
				break
			}
			e = inner
		}
		if e.Err != nil {
			text += ": " + e.Err.Error()
		}
		if hint != "" {
			text += "\nhint: " + hint
		}
	}
	fmt.Fprintln(os.Stderr, "bough: "+text)
	return cli.ExitCode(err)
}

// fromEnvironment lets BOUGH_FLAG_NAME set every flag that the command line does not.
func fromEnvironment(cmd *cobra.Command) error {
	var failed error
	set := func(f *pflag.Flag) {
		name := "BOUGH_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		if v := os.Getenv(name); v != "" {
			if err := f.Value.Set(v); err != nil {
				failed = core.Invalidf("the environment variable %s=%q: %v", name, v, err)
			}
			f.DefValue = f.Value.String() // what --help shows
		}
	}
	cmd.Flags().VisitAll(set)
	cmd.PersistentFlags().VisitAll(set)
	for _, sub := range cmd.Commands() {
		failed = errors.Join(failed, fromEnvironment(sub))
	}
	return failed
}
