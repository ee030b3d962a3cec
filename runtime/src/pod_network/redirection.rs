//! Sending on what arrives at one device out of another, by traffic control (linux/pkt_sched.h, linux/pkt_cls.h): an
//! ingress queueing discipline with one filter that matches everything and whose action is the redirection. The filter
//! is u32, which every kernel with traffic control has; flower and matchall are younger and may be missing.

use container::netlink::{Message, Netlink, TRAFFIC, nested, text};
use rustix::io::Errno;

/// Places in `struct tcmsg`.
const INDEX: usize = 4;
const HANDLE: usize = 8;
const PARENT: usize = 12;
const INFO: usize = 16;

/// The ingress queueing discipline's handle, and what it is attached to.
const INGRESS_HANDLE: u32 = 0xffff_0000;
const TC_H_INGRESS: u32 = 0xffff_fff1;

/// Messages and attributes that all kinds share.
const RTM_NEWQDISC: u16 = libc::RTM_NEWQDISC;
const RTM_DELQDISC: u16 = libc::RTM_DELQDISC;
const RTM_NEWTFILTER: u16 = libc::RTM_NEWTFILTER;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;

/// Of u32 filters.
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TC_U32_TERMINAL: u8 = 1;

/// Of actions, of which a filter has a numbered list.
const FIRST_ACTION: u16 = 1;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;

/// Of the action "mirred".
const TCA_MIRRED_PARMS: u16 = 2;
const TC_ACT_STOLEN: u32 = 4;
const TCA_EGRESS_REDIR: u32 = 1;

/// Everything that arrives at one device, sent out of another. Both are numbers of devices.
#[derive(Debug, Clone, Copy)]
pub(super) struct Redirection {
    pub(super) from: u32,
    pub(super) to: u32,
}

impl Redirection {
    /// Puts it in place, and in that of one that was left there.
    pub(super) fn make(&self, netlink: &mut Netlink) -> Result<(), Errno> {
        let create = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let ingress = self.ingress(RTM_NEWQDISC);
        match netlink.request_with(&ingress, create) {
            Err(Errno::EXIST) => {
                // Its filters go with it.
                self.undo(netlink)?;
                netlink.request_with(&ingress, create)?;
            }
            result => result?,
        }
        netlink.request_with(&self.filter()?, create)
    }

    /// Takes it away again.
    pub(super) fn undo(&self, netlink: &mut Netlink) -> Result<(), Errno> {
        netlink.request(&self.ingress(RTM_DELQDISC))
    }

    /// Named by its kind, so that another in its place is not taken for it.
    fn ingress(&self, kind: u16) -> Message {
        self.message(
            kind,
            INGRESS_HANDLE,
            TC_H_INGRESS,
            0,
            vec![(TCA_KIND, text("ingress"))],
        )
    }

    fn filter(&self) -> Result<Message, Errno> {
        const PRIORITY: u32 = 1;
        let protocol = u32::from((libc::ETH_P_ALL as u16).to_be());
        // struct tc_mirred: index, capabilities, action, two counts, what to do, with which device.
        let parameters = [0, 0, TC_ACT_STOLEN, 0, 0, TCA_EGRESS_REDIR, self.to];
        let parameters: Vec<u8> = parameters.into_iter().flat_map(u32::to_ne_bytes).collect();
        let options = nested(TCA_ACT_OPTIONS, &[(TCA_MIRRED_PARMS, parameters)])?;
        let action = nested(FIRST_ACTION, &[(TCA_ACT_KIND, text("mirred")), options])?;
        // struct tc_u32_sel with one key: none of the bits of the first word have to be anything.
        let mut selector = vec![0; 16 + 16];
        if let [flags, _, keys, ..] = selector.as_mut_slice() {
            (*flags, *keys) = (TC_U32_TERMINAL, 1);
        }
        let options = nested(
            TCA_OPTIONS,
            &[(TCA_U32_SEL, selector), nested(TCA_U32_ACT, &[action])?],
        )?;
        Ok(self.message(
            RTM_NEWTFILTER,
            0,
            INGRESS_HANDLE,
            PRIORITY << 16 | protocol,
            vec![(TCA_KIND, text("u32")), options],
        ))
    }

    fn message(
        &self,
        kind: u16,
        handle: u32,
        parent: u32,
        info: u32,
        attributes: Vec<(u16, Vec<u8>)>,
    ) -> Message {
        let mut message = Message {
            kind,
            fixed: vec![0; TRAFFIC],
            attributes,
        };
        for (offset, value) in [
            (INDEX, self.from),
            (HANDLE, handle),
            (PARENT, parent),
            (INFO, info),
        ] {
            message.set_number(offset, value);
        }
        message
    }
}
