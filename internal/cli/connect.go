package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/boughdb/bough/sdk"
)

// connectFlags say whom to connect as, and where to.
type connectFlags struct {
	role, database, endpoint string
	pooled                   bool
}

func (f *connectFlags) add(a *app, c *cobra.Command) {
	c.Flags().StringVar(&f.role, "role-name", "", "role (default: the owner of the database)")
	c.Flags().StringVar(&f.database, "database-name", "", "database (default: the only one of the branch)")
	c.Flags().StringVar(&f.endpoint, "endpoint-id", "", "endpoint (default: the read_write one of the branch)")
	c.Flags().BoolVar(&f.pooled, "pooled", false, "use the pooled host")
	a.projectFlag(c)
}

// uri asks the server for a connection string.
func (a *app) uri(ctx context.Context, branch string, f *connectFlags) (string, error) {
	cl, b, err := a.on(ctx, branch)
	if err != nil {
		return "", err
	}
	role, database := f.role, f.database
	if role == "" || database == "" {
		all, err := cl.Databases(ctx, b.ProjectID, b.ID)
		if err != nil {
			return "", err
		}
		d, err := pickDatabase(all, b, database)
		if err != nil {
			return "", err
		}
		database = d.Name
		if role == "" {
			role = d.OwnerName
		}
	}
	q := sdk.ConnectionURI{BranchID: b.ID, EndpointID: f.endpoint, Role: role, Database: database, Pooled: f.pooled}
	return cl.ConnectionURI(ctx, b.ProjectID, q)
}

func pickDatabase(all []sdk.Database, b *sdk.Branch, want string) (*sdk.Database, error) {
	var names []string
	for i, d := range all {
		if d.Name == want {
			return &all[i], nil
		}
		names = append(names, d.Name)
	}
	switch {
	case want != "":
		return nil, fmt.Errorf("branch %q has no database %q%s", b.Name, want, didYouMean(want, names, ": "+has(names)))
	case len(all) == 1:
		return &all[0], nil
	case len(all) == 0:
		return nil, fmt.Errorf("branch %q has no database; make one with: bough databases create", b.Name)
	}
	return nil, usagef("branch %q has %d databases, name one with --database-name: %s", b.Name, len(all), list(names))
}

func (a *app) connectionStringCmd() *cobra.Command {
	var f connectFlags
	c := &cobra.Command{Use: "connection-string [branch] [flags]", Aliases: []string{"cs"},
		Short: "Print a connection string, with the password in it",
		Long:  "Print the connection string of a branch, the default branch when none is named.",
		Example: "  bough connection-string\n  bough connection-string try-index --pooled\n" +
			"  DATABASE_URL=$(bough connection-string main --role-name app --database-name orders)"}
	f.add(a, c)
	return a.verb(c, cobra.MaximumNArgs(1), func(ctx context.Context, args []string) error {
		uri, err := a.uri(ctx, first(args), &f)
		if err != nil {
			return err
		}
		return a.print(map[string]string{"uri": uri}, func(w io.Writer) error {
			_, err := fmt.Fprintln(w, uri)
			return err
		})
	})
}

func (a *app) psqlCmd() *cobra.Command {
	var f connectFlags
	c := &cobra.Command{Use: "psql [branch] [flags] [-- psql arguments]", Short: "Open psql on a branch",
		Long: "Open psql on a branch, the default branch when none is named; a sleeping compute wakes. What follows -- goes to psql.\n" +
			"The password goes to psql through its environment, not its command line.",
		Example: "  bough psql\n  bough psql try-index -- -c 'select version()'\n  bough psql main --role-name app --database-name orders"}
	f.add(a, c)
	args := func(c *cobra.Command, args []string) error {
		own := len(args)
		if dash := c.ArgsLenAtDash(); dash >= 0 {
			own = dash
		}
		if own > 1 {
			return fmt.Errorf("one branch at most, and arguments for psql after --")
		}
		return nil
	}
	c = a.verb(c, args, func(ctx context.Context, args []string) error {
		branch, rest := "", args
		if dash := c.ArgsLenAtDash(); dash != 0 && len(args) > 0 {
			branch, rest = args[0], args[1:]
		}
		psql, err := a.findPsql()
		if err != nil {
			return err
		}
		uri, err := a.uri(ctx, branch, &f)
		if err != nil {
			return err
		}
		argv, env, err := psqlCommand(uri, rest, os.Environ())
		if err != nil {
			return err
		}
		if err := a.Exec(psql, argv, env); err != nil {
			return fmt.Errorf("cannot run %s: %w", psql, err)
		}
		return nil
	})
	// psql prints for itself.
	_ = c.Flags().MarkHidden("output")
	return c
}

// psqlCommand takes the password out of the URI: everybody on the machine may read a command line.
func psqlCommand(uri string, rest, environ []string) (argv, env []string, err error) {
	u, err := url.Parse(uri)
	if err != nil || u.User == nil {
		// The error of url.Parse would quote the password.
		return nil, nil, errors.New("the server sent a connection string that cannot be read")
	}
	password, _ := u.User.Password()
	u.User = url.User(u.User.Username())
	env = slices.DeleteFunc(slices.Clone(environ), func(v string) bool { return strings.HasPrefix(v, "PGPASSWORD=") })
	return append([]string{"psql", "--dbname=" + u.String()}, rest...), append(env, "PGPASSWORD="+password), nil
}

// findPsql looks on PATH, then where Debian's packages put it, the newest major first.
func (a *app) findPsql() (string, error) {
	for _, dir := range filepath.SplitList(a.Getenv("PATH")) {
		if path := filepath.Join(dir, "psql"); filepath.IsAbs(path) && executable(path) {
			return path, nil
		}
	}
	found, _ := filepath.Glob(filepath.Join(a.PgLib, "*", "bin", "psql"))
	major := func(path string) int {
		n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
		return n
	}
	slices.SortFunc(found, func(x, y string) int { return major(y) - major(x) })
	for _, path := range found {
		if executable(path) {
			return path, nil
		}
	}
	return "", errors.New("psql is not installed: apt-get install postgresql-client, or use the string that " +
		"bough connection-string prints with another client")
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}
