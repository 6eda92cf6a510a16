// Package cli holds the verbs that talk to a server through the API: projects, branches, endpoints, databases, roles,
// operations, connection-string, psql, ip-allow, jwks, keys, me, orgs, members and invitations. Tables go to people, -o json to programs.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/boughdb/bough/sdk"
)

// Exit codes.
const (
	ExitOK    = 0
	ExitError = 1
	ExitUsage = 2
)

// Options is what the verbs take from the process; the zero value takes the real one. Tests replace parts of it.
type Options struct {
	In        io.Reader
	Out, Err  io.Writer
	Getenv    func(string) string
	Now       func() time.Time
	Exec      func(path string, argv, env []string) error // replaces the process, for psql
	IsTTY     func(stream any) bool
	SystemDir string // data directory of a server that runs as root; default /var/lib/bough
	Root      bool   // whether SystemDir is the default
	PgLib     string // where Debian puts psql; default /usr/lib/postgresql
}

func (o Options) withDefaults() Options {
	if o.In == nil {
		o.In = os.Stdin
	}
	if o.Out == nil {
		o.Out = os.Stdout
	}
	if o.Err == nil {
		o.Err = os.Stderr
	}
	if o.Getenv == nil {
		o.Getenv = os.Getenv
		o.Root = os.Geteuid() == 0
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Exec == nil {
		o.Exec = syscall.Exec
	}
	if o.IsTTY == nil {
		o.IsTTY = isTerminal
	}
	if o.SystemDir == "" {
		o.SystemDir = "/var/lib/bough"
	}
	if o.PgLib == "" {
		o.PgLib = "/usr/lib/postgresql"
	}
	return o
}

// isTerminal tells whether a stream is a character device other than /dev/null.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull)
	return err != nil || !os.SameFile(info, null)
}

// app is shared by the verbs of one command line.
type app struct {
	Options
	apiURL, apiKey, dataDir string
	output                  string
	projectID, orgID        string
	noWait                  bool
	yes                     bool

	conn *connection // set by connect
}

// Commands returns the verbs, to be mounted under the root command.
func Commands(opts Options) []*cobra.Command {
	a := &app{Options: opts.withDefaults()}
	cmds := []*cobra.Command{
		a.projectsCmd(), a.branchesCmd(), a.endpointsCmd(), a.databasesCmd(), a.rolesCmd(), a.operationsCmd(), a.consumptionCmd(),
		a.connectionStringCmd(), a.psqlCmd(), a.ipAllowCmd(), a.jwksCmd(), a.keysCmd(), a.meCmd(), a.orgsCmd(), a.membersCmd(), a.invitationsCmd(),
	}
	for _, c := range cmds {
		f := c.PersistentFlags()
		f.StringVar(&a.apiURL, "api-url", "", "address of the API (BOUGH_API_URL; default: from admin.json)")
		f.StringVar(&a.apiKey, "api-key", "", "API key (BOUGH_API_KEY; default: from admin.json)")
		f.StringVar(&a.dataDir, "data-dir", "", "data directory of a server on this machine (BOUGH_DATA_DIR)")
		c.SetFlagErrorFunc(flagError)
	}
	return cmds
}

// Prepare makes an unknown command and a wrong flag of root and of everything under it a usage error. Call it once, when
// all commands are mounted.
func Prepare(root *cobra.Command) {
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetFlagErrorFunc(flagError)
	if root.Run == nil && root.RunE == nil {
		root.Args, root.RunE = groupArgs, runHelp
	}
}

// Execute prepares and runs root, prints an error as one line on stderr and returns the exit code.
func Execute(ctx context.Context, root *cobra.Command, stderr io.Writer) int {
	Prepare(root)
	err := root.ExecuteContext(ctx)
	if err != nil {
		fmt.Fprintln(stderr, "bough: "+oneLine(err.Error()))
	}
	return ExitCode(err)
}

// ExitCode maps an error of a verb to the exit code of the process.
func ExitCode(err error) int {
	if err == nil {
		return ExitOK
	}
	if _, ok := errors.AsType[*usageError](err); ok {
		return ExitUsage
	}
	return ExitError
}

// verb finishes a command: usage errors, and errors of the API explained.
func (a *app) verb(c *cobra.Command, args cobra.PositionalArgs, run func(ctx context.Context, args []string) error) *cobra.Command {
	c.Args = func(c *cobra.Command, given []string) error {
		if err := args(c, given); err != nil {
			return usagef("%v; usage: %s", err, c.UseLine())
		}
		return nil
	}
	c.DisableFlagsInUseLine = true
	c.RunE = func(c *cobra.Command, given []string) error {
		if a.output != "" && a.output != "table" && a.output != "json" {
			return usagef("--output is table or json, not %q", a.output)
		}
		return a.explain(run(c.Context(), given))
	}
	c.Flags().StringVarP(&a.output, "output", "o", "table", "table for people, json for programs")
	return c
}

// group is a command that only holds others.
func group(use, short, long string, aliases []string, subs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Aliases: aliases, Short: short, Long: long, Args: groupArgs, RunE: runHelp}
	c.AddCommand(subs...)
	return c
}

func runHelp(c *cobra.Command, _ []string) error { return c.Help() }

// groupArgs refuses an unknown sub-command and suggests a known one.
func groupArgs(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	var names []string
	for _, s := range c.Commands() {
		if s.IsAvailableCommand() {
			names = append(names, s.Name())
		}
	}
	return usagef("%s has no command %q%s", c.CommandPath(), args[0], didYouMean(args[0], names,
		"; see "+c.CommandPath()+" --help"))
}

func flagError(c *cobra.Command, err error) error {
	if errors.Is(err, pflag.ErrHelp) {
		return err
	}
	return usagef("%v; see %s --help", err, c.CommandPath())
}

// projectFlag adds --project-id.
func (a *app) projectFlag(c *cobra.Command) *cobra.Command {
	c.Flags().StringVar(&a.projectID, "project-id", "", "project, by id or name (BOUGH_PROJECT_ID; default: the only one)")
	return c
}

// waitFlag adds --no-wait.
func (a *app) waitFlag(c *cobra.Command) *cobra.Command {
	c.Flags().BoolVar(&a.noWait, "no-wait", false, "return at once, while the operations go on")
	return c
}

// yesFlag adds --yes.
func (a *app) yesFlag(c *cobra.Command) *cobra.Command {
	c.Flags().BoolVarP(&a.yes, "yes", "y", false, "do not ask for confirmation")
	return c
}

// usageError is a mistake in the command line.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func usagef(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// explained replaces the text of an error and keeps its cause.
type explained struct {
	text string
	err  error
}

func (e *explained) Error() string { return e.text }
func (e *explained) Unwrap() error { return e.err }

// explain says in one line what a user can do about an error.
func (a *app) explain(err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	e, answered := errors.AsType[*sdk.Error](err)
	switch {
	case answered && sdk.IsUnauthorized(err) && a.conn != nil:
		text = "the server does not accept the API key " + a.conn.keyFrom + ": " + text
	case answered && sdk.IsNotImplemented(err):
		text = "this server cannot do that yet: " + text
	case answered && e.Status >= 500 && e.RequestID != "":
		text += "; the server's log has more under the request id"
	case errors.Is(err, context.Canceled):
		text = "interrupted; what was begun goes on in the server (see bough operations list)"
	case errors.Is(err, syscall.ECONNREFUSED) && a.conn != nil:
		text = fmt.Sprintf("no server answers at %s (%s): is it running? Start it with: bough serve", a.conn.url, a.conn.urlFrom)
	case !answered && isNetwork(err) && a.conn != nil:
		text = fmt.Sprintf("the server at %s (%s) cannot be reached: %v", a.conn.url, a.conn.urlFrom, networkCause(err))
	}
	return &explained{oneLine(text), err}
}

// oneLine makes a text of the server or of the system safe for a terminal.
func oneLine(s string) string { return printable(strings.Join(strings.Fields(s), " ")) }
