package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/boughdb/bough/sdk"
)

func (a *app) rolesCmd() *cobra.Command {
	return group("roles", "List, create and delete roles, and see their passwords", "The Postgres roles of a branch.", []string{"role"},
		a.rolesList(), a.rolesCreate(), a.rolesGet(), a.rolesDelete(), a.rolesReset(), a.rolesReveal())
}

func (a *app) roleFields(r *sdk.Role) fields {
	var f fields
	f.add("Name", r.Name)
	f.add("Password", deref(r.Password))
	f.add("Branch", r.BranchID)
	f.add("Protected", yes(deref(r.Protected)))
	f.add("Created", a.when(r.CreatedAt))
	return f
}

func (a *app) rolesList() *cobra.Command {
	var branch string
	c := &cobra.Command{Use: "list [flags]", Aliases: []string{"ls"}, Short: "List the roles of a branch",
		Example: "  bough roles list\n  bough roles list --branch try-index -o json"}
	return a.verb(a.branchFlags(c, &branch), cobra.NoArgs, func(ctx context.Context, _ []string) error {
		cl, b, err := a.on(ctx, branch)
		if err != nil {
			return err
		}
		all, err := cl.Roles(ctx, b.ProjectID, b.ID)
		if err != nil {
			return err
		}
		t := &table{header: []string{"NAME", "PROTECTED", "CREATED"}, empty: "No roles."}
		for _, r := range all {
			t.add(r.Name, orDash(yes(deref(r.Protected))), a.ago(r.CreatedAt))
		}
		return a.printTable(all, t)
	})
}

// onlyRole is the role of a branch that has one, the default where a role is needed.
func (a *app) onlyRole(ctx context.Context, cl *sdk.Client, b *sdk.Branch, flag string) (string, error) {
	all, err := cl.Roles(ctx, b.ProjectID, b.ID)
	if err != nil {
		return "", err
	}
	var names []string
	for _, r := range all {
		names = append(names, r.Name)
	}
	switch len(names) {
	case 0:
		return "", fmt.Errorf("branch %q has no role; make one with: bough roles create", b.Name)
	case 1:
		return names[0], nil
	}
	return "", usagef("branch %q has %d roles, name one with %s: %s", b.Name, len(names), flag, list(names))
}

// noRole adds similar names to a 404.
func (a *app) noRole(ctx context.Context, cl *sdk.Client, b *sdk.Branch, name string, err error) error {
	if !sdk.IsNotFound(err) {
		return err
	}
	all, listErr := cl.Roles(ctx, b.ProjectID, b.ID)
	if listErr != nil {
		return err
	}
	var names []string
	for _, r := range all {
		names = append(names, r.Name)
	}
	return fmt.Errorf("%w%s", err, didYouMean(name, names, "; the branch "+has(names)[len("it "):]))
}

// roleVerb is a verb about one role of a branch.
func (a *app) roleVerb(c *cobra.Command, run func(ctx context.Context, cl *sdk.Client, b *sdk.Branch, name string) error) *cobra.Command {
	var branch string
	return a.verb(a.branchFlags(c, &branch), cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		cl, b, err := a.on(ctx, branch)
		if err != nil {
			return err
		}
		return a.noRole(ctx, cl, b, args[0], run(ctx, cl, b, args[0]))
	})
}

func (a *app) rolesGet() *cobra.Command {
	c := &cobra.Command{Use: "get <role> [flags]", Aliases: []string{"show"}, Short: "Show one role", Example: "  bough roles get neondb_owner"}
	return a.roleVerb(c, func(ctx context.Context, cl *sdk.Client, b *sdk.Branch, name string) error {
		r, err := cl.Role(ctx, b.ProjectID, b.ID, name)
		if err != nil {
			return err
		}
		return a.printFields(r, a.roleFields(r))
	})
}

func (a *app) rolesCreate() *cobra.Command {
	var branch, name string
	var noLogin bool
	c := &cobra.Command{Use: "create [name] [flags]", Short: "Make a role; its password is shown",
		Example: "  bough roles create app\n  bough roles create --name app --branch try-index -o json | jq -r .role.password"}
	c.Flags().StringVar(&name, "name", "", "name")
	c.Flags().BoolVar(&noLogin, "no-login", false, "a role that cannot connect")
	return a.verb(a.waitFlag(a.branchFlags(c, &branch)), cobra.MaximumNArgs(1), func(ctx context.Context, args []string) error {
		name, err := oneName(args, name, "name for the role", true)
		if err != nil {
			return err
		}
		cl, b, err := a.on(ctx, branch)
		if err != nil {
			return err
		}
		req := sdk.RoleCreate{Name: name}
		if noLogin {
			req.NoLogin = &noLogin
		}
		out, err := cl.CreateRole(ctx, b.ProjectID, b.ID, req)
		if err != nil {
			return err
		}
		return a.roleDone(ctx, cl, out)
	})
}

func (a *app) roleDone(ctx context.Context, cl *sdk.Client, out *sdk.RoleOperations) error {
	var err error
	if out.Operations, err = a.wait(ctx, cl, out.Operations); err != nil {
		return err
	}
	return a.printFields(out, a.roleFields(&out.Role))
}

func (a *app) rolesDelete() *cobra.Command {
	c := &cobra.Command{Use: "delete <role> [flags]", Aliases: []string{"rm"}, Short: "Drop a role that owns no database",
		Example: "  bough roles delete app --yes"}
	return a.roleVerb(a.yesFlag(a.waitFlag(c)), func(ctx context.Context, cl *sdk.Client, b *sdk.Branch, name string) error {
		// A delete of what is missing answers 204, which would hide a typo.
		r, err := cl.Role(ctx, b.ProjectID, b.ID, name)
		if err != nil {
			return err
		}
		if err := a.confirm("Delete role %s of branch %s?", name, b.Name); err != nil {
			return err
		}
		out, err := cl.DeleteRole(ctx, b.ProjectID, b.ID, name)
		if err != nil {
			return err
		}
		if out.Role.Name == "" { // gone in the meantime
			out.Role, out.Operations = *r, []sdk.Operation{}
		}
		if out.Operations, err = a.wait(ctx, cl, out.Operations); err != nil {
			return err
		}
		return a.deleted(out, "role "+name+" of branch "+b.Name)
	})
}

func (a *app) rolesReset() *cobra.Command {
	c := &cobra.Command{Use: "reset-password <role> [flags]", Short: "Give a role a new password and show it",
		Example: "  bough roles reset-password neondb_owner"}
	return a.roleVerb(a.waitFlag(c), func(ctx context.Context, cl *sdk.Client, b *sdk.Branch, name string) error {
		out, err := cl.ResetRolePassword(ctx, b.ProjectID, b.ID, name)
		if err != nil {
			return err
		}
		return a.roleDone(ctx, cl, out)
	})
}

func (a *app) rolesReveal() *cobra.Command {
	c := &cobra.Command{Use: "reveal-password <role> [flags]", Short: "Show the password of a role",
		Example: "  bough roles reveal-password neondb_owner"}
	return a.roleVerb(c, func(ctx context.Context, cl *sdk.Client, b *sdk.Branch, name string) error {
		password, err := cl.RolePassword(ctx, b.ProjectID, b.ID, name)
		if err != nil {
			return err
		}
		return a.print(map[string]string{"password": password}, func(w io.Writer) error {
			_, err := fmt.Fprintln(w, password)
			return err
		})
	})
}
