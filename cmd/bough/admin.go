package main

import (
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/boughdb/bough/internal/control"
	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/service"
)

// adminCommand is what the cloud's console does before there is a key.
func adminCommand() *cobra.Command {
	var dir, url string
	cmd := &cobra.Command{
		Use:   "admin",
		Short: "Manage users, organizations and keys on the server's machine, without a key",
		Long:  "Manage users, organizations and keys. This works on the server's machine, as the user that runs the server, while it runs.",
	}
	dataDirFlag(cmd.PersistentFlags(), &dir)
	cmd.PersistentFlags().StringVar(&url, "database-url", "", "control database, when the server was given one")

	// with runs fn with the control database.
	with := func(fn func(cmd *cobra.Command, a control.Admin) error) func(*cobra.Command, []string) error {
		return func(cmd *cobra.Command, _ []string) error {
			a, done, err := service.OpenAdmin(cmd.Context(), dir, url)
			if err != nil {
				return err
			}
			defer done()
			return fn(cmd, a)
		}
	}
	group := func(use, short string, subs ...*cobra.Command) *cobra.Command {
		g := &cobra.Command{Use: use, Short: short}
		g.AddCommand(subs...)
		return g
	}
	var email, name, org, project, role string
	var id int64

	addUser := &cobra.Command{Use: "create", Short: "Make a user with an organization and a personal key", Args: cobra.NoArgs,
		Example: "  bough admin users create --email ada@example.com --name Ada",
		RunE: with(func(cmd *cobra.Command, a control.Admin) error {
			user, o, err := a.AddUser(cmd.Context(), email, name)
			if err != nil {
				return err
			}
			key, err := a.AddKey(cmd.Context(), "first key", user.Email, "", "")
			if err != nil {
				return err
			}
			fmt.Printf("user          %s\norganization  %s\nAPI key       %s  (shown once)\n", user.ID, o.ID, key.Secret)
			return nil
		})}
	addUser.Flags().StringVar(&email, "email", "", "e-mail address")
	addUser.Flags().StringVar(&name, "name", "", "name")
	listUsers := &cobra.Command{Use: "list", Short: "List the users", Args: cobra.NoArgs,
		RunE: with(func(cmd *cobra.Command, a control.Admin) error {
			users, err := a.Store.Users(cmd.Context())
			w := table("ID", "E-MAIL", "NAME", "CREATED")
			for _, u := range users {
				row(w, u.ID, u.Email, u.Name, u.CreatedAt)
			}
			return flush(w, err)
		})}

	addOrg := &cobra.Command{Use: "create", Short: "Make an organization", Args: cobra.NoArgs,
		Example: "  bough admin orgs create --name Team --email ada@example.com",
		RunE: with(func(cmd *cobra.Command, a control.Admin) error {
			o, err := a.AddOrg(cmd.Context(), name, email)
			if err == nil {
				fmt.Println(o.ID)
			}
			return err
		})}
	addOrg.Flags().StringVar(&name, "name", "", "name")
	addOrg.Flags().StringVar(&email, "email", "", "e-mail address of its admin")
	listOrgs := &cobra.Command{Use: "list", Short: "List the organizations", Args: cobra.NoArgs,
		RunE: with(func(cmd *cobra.Command, a control.Admin) error {
			orgs, err := a.Store.Organizations(cmd.Context())
			w := table("ID", "NAME", "CREATED")
			for _, o := range orgs {
				row(w, o.ID, o.Name, o.CreatedAt)
			}
			return flush(w, err)
		})}
	setMember := &cobra.Command{Use: "set-member", Short: "Make a user a member of an organization, or change or end the membership", Args: cobra.NoArgs,
		Example: "  bough admin orgs set-member --org-id org-quiet-river-12345678 --email ada@example.com --role admin",
		RunE: with(func(cmd *cobra.Command, a control.Admin) error {
			switch role {
			case "none":
				role = ""
			case "":
				return core.Invalidf("--role must be admin, member or none")
			}
			return a.SetMember(cmd.Context(), org, email, role)
		})}
	setMember.Flags().StringVar(&org, "org-id", "", "the organization")
	setMember.Flags().StringVar(&email, "email", "", "e-mail address of the user")
	setMember.Flags().StringVar(&role, "role", "", "admin, member, or none to end the membership")

	invitations := &cobra.Command{Use: "invitations", Short: "List the open invitations with their links", Args: cobra.NoArgs,
		Long: "List the open invitations with their links. Whoever has a link can accept the invitation: treat it like a password.",
		RunE: with(func(cmd *cobra.Command, a control.Admin) error {
			list, err := a.Invitations(cmd.Context())
			w := table("E-MAIL", "ORGANIZATION", "ROLE", "EXPIRES", "LINK")
			for _, i := range list {
				row(w, i.Email, i.OrgID, i.Role, i.ExpiresAt, i.Link)
			}
			return flush(w, err)
		})}

	addKey := &cobra.Command{Use: "create", Short: "Make a key: a user's, an organization's, or for one project", Args: cobra.NoArgs,
		Example: "  bough admin keys create --name ci --org-id org-quiet-river-12345678",
		RunE: with(func(cmd *cobra.Command, a control.Admin) error {
			k, err := a.AddKey(cmd.Context(), name, email, org, project)
			if err == nil {
				fmt.Println(k.Secret)
			}
			return err
		})}
	addKey.Flags().StringVar(&name, "name", "", "name of the key")
	addKey.Flags().StringVar(&email, "email", "", "the user whose personal key it is")
	addKey.Flags().StringVar(&org, "org-id", "", "the organization whose key it is")
	addKey.Flags().StringVar(&project, "project-id", "", "the organization's only project that it opens")
	listKeys := &cobra.Command{Use: "list", Short: "List the keys", Args: cobra.NoArgs,
		RunE: with(func(cmd *cobra.Command, a control.Admin) error {
			keys, err := a.Store.Keys(cmd.Context())
			w := table("ID", "NAME", "USER", "ORGANIZATION", "PROJECT", "CREATED")
			for _, k := range keys {
				row(w, k.ID, k.Name, k.UserName, k.OrgID, k.ProjectID, k.CreatedAt)
			}
			return flush(w, err)
		})}
	revokeKey := &cobra.Command{Use: "revoke", Short: "Revoke a key", Args: cobra.NoArgs,
		RunE: with(func(cmd *cobra.Command, a control.Admin) error {
			k, err := a.Store.RevokeKey(cmd.Context(), id)
			if err == nil {
				fmt.Printf("revoked key %d (%s)\n", k.ID, k.Name)
			}
			return err
		})}
	revokeKey.Flags().Int64Var(&id, "id", 0, "id of the key")

	for _, required := range []struct {
		cmd   *cobra.Command
		names []string
	}{{addUser, []string{"email", "name"}}, {addOrg, []string{"email", "name"}}, {addKey, []string{"name"}}, {setMember, []string{"org-id", "email", "role"}}, {revokeKey, []string{"id"}}} {
		for _, n := range required.names {
			if err := required.cmd.MarkFlagRequired(n); err != nil {
				panic(err)
			}
		}
	}
	addKey.MarkFlagsOneRequired("email", "org-id")
	addKey.MarkFlagsMutuallyExclusive("email", "org-id")
	cmd.AddCommand(
		group("users", "Users", addUser, listUsers),
		group("orgs", "Organizations", addOrg, listOrgs, setMember),
		group("keys", "API keys", addKey, listKeys, revokeKey),
		invitations,
	)
	return cmd
}

func table(headers ...any) *tabwriter.Writer {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	row(w, headers...)
	return w
}

func row(w *tabwriter.Writer, cells ...any) {
	for i, c := range cells {
		if t, ok := c.(time.Time); ok {
			c = t.UTC().Format(time.RFC3339)
		}
		if i > 0 {
			fmt.Fprint(w, "\t")
		}
		fmt.Fprint(w, c)
	}
	fmt.Fprintln(w)
}

func flush(w *tabwriter.Writer, err error) error {
	if err != nil {
		return err
	}
	return w.Flush()
}
