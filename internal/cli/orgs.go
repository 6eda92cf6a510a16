package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/sdk"
)

// orgFlag adds --org-id.
func (a *app) orgFlag(c *cobra.Command) *cobra.Command {
	c.Flags().StringVar(&a.orgID, "org-id", "", "organization, by id, name or handle (BOUGH_ORG_ID; default: the only one)")
	return c
}

// org finds the organization that --org-id or BOUGH_ORG_ID names, or the only one there is.
func (a *app) org(ctx context.Context) (*sdk.Client, string, error) {
	cl, err := a.client()
	if err != nil {
		return nil, "", err
	}
	want := a.orgID
	if want == "" {
		want = a.Getenv("BOUGH_ORG_ID")
	}
	id, err := findOrg(ctx, cl, want)
	return cl, id, err
}

// findOrg resolves an id, a name or a handle; an empty want is the only organization.
func findOrg(ctx context.Context, cl *sdk.Client, want string) (string, error) {
	all, err := cl.Organizations(ctx)
	if sdk.IsNotFound(err) && want != "" {
		return want, nil // an organization's key has no user whose organizations could be looked at
	}
	if err != nil {
		return "", err
	}
	var shown, names, hits []string
	for _, o := range all {
		shown = append(shown, o.ID+" ("+printable(o.Name)+")")
		names = append(names, o.ID, o.Name, o.Handle)
		if o.ID == want {
			return o.ID, nil
		}
		if want == "" || o.Name == want || o.Handle == want {
			hits = append(hits, o.ID)
		}
	}
	switch {
	case len(hits) == 1:
		return hits[0], nil
	case len(all) == 0:
		return "", fmt.Errorf("you belong to no organization")
	case want == "":
		return "", usagef("there are %d organizations, name one with --org-id or BOUGH_ORG_ID: %s", len(all), list(shown))
	case len(hits) > 1:
		return "", usagef("%d organizations are named %q, use the id of one: %s", len(hits), want, list(hits))
	}
	return "", fmt.Errorf("there is no organization %q%s", want, didYouMean(want, names, "; see bough orgs list"))
}

func (a *app) orgsCmd() *cobra.Command {
	return group("orgs", "List and show your organizations", "Organizations own projects.", []string{"org"}, a.orgsList(), a.orgsGet())
}

func (a *app) orgsList() *cobra.Command {
	c := &cobra.Command{Use: "list [flags]", Aliases: []string{"ls"}, Short: "List your organizations", Example: "  bough orgs list"}
	return a.verb(c, cobra.NoArgs, func(ctx context.Context, _ []string) error {
		cl, err := a.client()
		if err != nil {
			return err
		}
		all, err := cl.Organizations(ctx)
		if err != nil {
			return err
		}
		t := &table{header: []string{"ID", "NAME", "HANDLE", "CREATED"}, empty: "No organizations."}
		for _, o := range all {
			t.add(o.ID, o.Name, o.Handle, a.ago(o.CreatedAt))
		}
		return a.printTable(all, t)
	})
}

func (a *app) orgsGet() *cobra.Command {
	c := &cobra.Command{Use: "get [organization] [flags]", Aliases: []string{"show"}, Short: "Show one organization",
		Example: "  bough orgs get\n  bough orgs get acme -o json"}
	return a.verb(a.orgFlag(c), cobra.MaximumNArgs(1), func(ctx context.Context, args []string) error {
		if len(args) > 0 {
			a.orgID = args[0]
		}
		cl, id, err := a.org(ctx)
		if err != nil {
			return err
		}
		o, err := cl.Organization(ctx, id)
		if err != nil {
			return err
		}
		var f fields
		f.add("Id", o.ID)
		f.add("Name", o.Name)
		f.add("Handle", o.Handle)
		f.add("Created", a.when(o.CreatedAt))
		return a.printFields(o, f)
	})
}

func (a *app) membersCmd() *cobra.Command {
	return group("members", "List an organization's members, change their roles, remove them",
		"Members of an organization work in all of its projects. Admins also change members, keys and owners. Members are named by\n"+
			"e-mail address or id; new ones are invited: bough invitations create.", []string{"member"},
		a.membersList(), a.membersSetRole(), a.membersRemove())
}

func (a *app) membersList() *cobra.Command {
	c := &cobra.Command{Use: "list [flags]", Aliases: []string{"ls"}, Short: "List an organization's members",
		Example: "  bough members list\n  bough members list --org-id acme -o json"}
	return a.verb(a.orgFlag(c), cobra.NoArgs, func(ctx context.Context, _ []string) error {
		cl, org, err := a.org(ctx)
		if err != nil {
			return err
		}
		all, err := cl.Members(ctx, org)
		if err != nil {
			return err
		}
		t := &table{header: []string{"EMAIL", "ROLE", "ID", "JOINED"}, empty: "No members."}
		for _, m := range all {
			joined := "-"
			if m.Member.JoinedAt != nil {
				joined = a.ago(*m.Member.JoinedAt)
			}
			t.add(m.User.Email, string(m.Member.Role), m.Member.ID, joined)
		}
		return a.printTable(all, t)
	})
}

// member finds a member of an organization by e-mail address or id.
func (a *app) member(ctx context.Context, want string) (*sdk.Client, string, *sdk.Member, error) {
	if want == "" {
		return nil, "", nil, usagef("the name of the member is empty")
	}
	cl, org, err := a.org(ctx)
	if err != nil {
		return nil, "", nil, err
	}
	all, err := cl.Members(ctx, org)
	if err != nil {
		return nil, "", nil, err
	}
	var names []string
	for i, m := range all {
		if strings.EqualFold(m.User.Email, want) || m.Member.ID == want {
			return cl, org, &all[i], nil
		}
		names = append(names, m.User.Email)
	}
	return nil, "", nil, fmt.Errorf("the organization has no member %q%s", want, didYouMean(want, names, "; see bough members list"))
}

func (a *app) membersSetRole() *cobra.Command {
	c := &cobra.Command{Use: "set-role <member> <admin|member> [flags]", Short: "Make a member an admin, or an admin an ordinary member",
		Example: "  bough members set-role robin@example.com admin"}
	return a.verb(a.orgFlag(c), cobra.ExactArgs(2), func(ctx context.Context, args []string) error {
		role, err := memberRole(args[1])
		if err != nil {
			return err
		}
		cl, org, m, err := a.member(ctx, args[0])
		if err != nil {
			return err
		}
		out, err := cl.SetMemberRole(ctx, org, m.Member.ID, role)
		if err != nil {
			return err
		}
		var f fields
		f.add("Id", out.ID)
		f.add("Email", m.User.Email)
		f.add("Role", string(out.Role))
		f.add("Organization", out.OrgID)
		return a.printFields(out, f)
	})
}

func memberRole(v string) (api.MemberRole, error) {
	if v != string(api.MemberRoleAdmin) && v != string(api.MemberRoleMember) {
		return "", usagef("a role is admin or member, not %q", v)
	}
	return api.MemberRole(v), nil
}

func (a *app) membersRemove() *cobra.Command {
	c := &cobra.Command{Use: "remove <member> [flags]", Aliases: []string{"rm", "delete"}, Short: "Take a member out of an organization",
		Long:    "Take a member out of an organization. The member's personal keys lose access to its projects at once.",
		Example: "  bough members remove robin@example.com\n  bough members remove robin@example.com --yes"}
	return a.verb(a.yesFlag(a.orgFlag(c)), cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		cl, org, m, err := a.member(ctx, args[0])
		if err != nil {
			return err
		}
		if err := a.confirm("Remove %s from organization %s?", m.User.Email, org); err != nil {
			return err
		}
		if err := cl.RemoveMember(ctx, org, m.Member.ID); err != nil {
			return err
		}
		return a.done(m, "Removed %s from %s", m.User.Email, org)
	})
}

// done prints the answer for programs and one line for people.
func (a *app) done(v any, format string, args ...any) error {
	if a.output == "json" {
		return a.print(v, nil)
	}
	_, err := fmt.Fprintln(a.Out, printable(fmt.Sprintf(format, args...)))
	return err
}

func (a *app) invitationsCmd() *cobra.Command {
	return group("invitations", "Invite people into an organization",
		"Invite people by e-mail address. A server without mail shows the link to pass on.", []string{"invitation"},
		a.invitationsList(), a.invitationsCreate())
}

func (a *app) invitationsList() *cobra.Command {
	c := &cobra.Command{Use: "list [flags]", Aliases: []string{"ls"}, Short: "List an organization's invitations",
		Example: "  bough invitations list"}
	return a.verb(a.orgFlag(c), cobra.NoArgs, func(ctx context.Context, _ []string) error {
		cl, org, err := a.org(ctx)
		if err != nil {
			return err
		}
		all, err := cl.Invitations(ctx, org)
		if err != nil {
			return err
		}
		t := &table{header: []string{"EMAIL", "ROLE", "INVITED"}, empty: "No invitations."}
		for _, i := range all {
			t.add(i.Email, string(i.Role), a.ago(i.InvitedAt))
		}
		return a.printTable(all, t)
	})
}

func (a *app) invitationsCreate() *cobra.Command {
	var role string
	c := &cobra.Command{Use: "create <email>... [flags]", Short: "Invite people; who has an account is a member at once",
		Example: "  bough invitations create robin@example.com\n  bough invitations create kim@example.com --role admin --org-id acme"}
	c.Flags().StringVar(&role, "role", "member", "what they become: member or admin")
	return a.verb(a.orgFlag(c), cobra.MinimumNArgs(1), func(ctx context.Context, args []string) error {
		as, err := memberRole(role)
		if err != nil {
			return err
		}
		var people []sdk.InvitationCreate
		for _, email := range args {
			people = append(people, sdk.InvitationCreate{Email: email, Role: as})
		}
		cl, org, err := a.org(ctx)
		if err != nil {
			return err
		}
		made, err := cl.Invite(ctx, org, people...)
		if err != nil {
			return err
		}
		t := &table{header: []string{"EMAIL", "ROLE", "LINK"}}
		links := false
		for _, i := range made {
			t.add(i.Email, string(i.Role), orDash(deref(i.AcceptURL)))
			links = links || i.AcceptURL != nil
		}
		if err := a.printTable(made, t); err != nil {
			return err
		}
		if links && a.output != "json" {
			a.note("Pass each link on to its person; it works once, and cannot be shown again.")
		}
		return nil
	})
}
