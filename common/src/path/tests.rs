mod chaos;
mod choice;
mod net;
mod noise;
mod outage;
mod roles;
