// Command bough is all of Bough: the server and its command line.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

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
		Version:       service.Version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetArgs(args)
	root.AddGroup(&cobra.Group{ID: "server", Title: "The server:"})
	for _, cmd := range []*cobra.Command{serveCommand(), upCommand(), downCommand(), statusCommand(), adminCommand()} {
		cmd.GroupID = "server"
		root.AddCommand(cmd)
	}
	root.AddCommand(clientCommands()...)
	fromEnvironment(root)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	return report(err)
}

// report prints an error in one line, with what an operator can do about it.
func report(err error) int {
	if code, ok := clientError(err); ok {
		return code
	}
	text := err.Error()
	if e, ok := errors.AsType[*core.Error](err); ok && e.Kind != core.KindInternal {
		text = e.Message
		if e.Err != nil {
			text += ": " + e.Err.Error()
		}
		if e.Hint != "" {
			text += "\nhint: " + e.Hint
		}
	}
	fmt.Fprintln(os.Stderr, "bough: "+text)
	return 1
}

// fromEnvironment lets BOUGH_FLAG_NAME set every flag that the command line does not.
func fromEnvironment(cmd *cobra.Command) {
	set := func(f *pflag.Flag) {
		name := "BOUGH_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		if v, ok := os.LookupEnv(name); ok && v != "" && !f.Changed && f.Name != "help" && f.Name != "version" {
			if err := f.Value.Set(v); err != nil {
				fmt.Fprintf(os.Stderr, "bough: %s=%q: %v\n", name, v, err)
				os.Exit(2)
			}
		}
	}
	cmd.Flags().VisitAll(set)
	cmd.PersistentFlags().VisitAll(set)
	for _, sub := range cmd.Commands() {
		fromEnvironment(sub)
	}
}
